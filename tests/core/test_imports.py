import gc

import pytest

from lillama.core.imports import of_many_objects


def test_garbage_is_collected_after_the_imports_and_what_they_made_is_never_looked_at():
    with of_many_objects():
        assert not gc.isenabled()
        made = [[]]
        assert any(known is made for known in gc.get_objects())
    assert gc.isenabled()
    assert not any(known is made for known in gc.get_objects())


def test_garbage_is_collected_where_an_import_fails():
    with pytest.raises(ImportError), of_many_objects():
        raise ImportError
    assert gc.isenabled()
