"""Ask whether the Hugging Face Hub has a repository, once and without the many retries of its client."""

import functools
import time

from lillama.core.errors import ConfigError

PATIENCE = 10  # seconds
REMEMBERED = 300  # seconds until the Hub is asked again: a run asks several times, a network comes back


def offline(repo: str, key: str, *, kind: str = "model", revision: str | None = None) -> bool:
    """Ask the Hub for a repository; true where it does not answer, and only what was downloaded before can be used.

    :param key: the configuration key that names the repository. :param kind: ``model`` or ``dataset``.
    :raises ConfigError: where the Hub has no such repository or revision, or does not give it to this user.
    """
    return _asked(repo, key, kind, revision, int(time.monotonic() // REMEMBERED))


@functools.cache
def _asked(repo: str, key: str, kind: str, revision: str | None, window: int) -> bool:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if constants.HF_HUB_OFFLINE:
        return True
    try:
        HfApi().repo_info(repo, repo_type=kind, revision=revision, timeout=PATIENCE)
    except HFValidationError:
        raise ConfigError(f"{key}={repo}: no such file or folder, and no name that the Hub could have") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in {401, 403, 404}:
            what = f"{kind} of this name" if revision is None else f"{kind} of this name and revision {revision}"
            raise ConfigError(
                f"{key}={repo}: no such file or folder, and the Hub has no {what}, or not for you (status {status}):"
                " look at the spelling, or log in (hf auth login)"
            ) from None
        return True  # the Hub has trouble of its own
    except Exception:  # noqa: BLE001 - no network, a proxy, a name that does not resolve: each has errors of its own
        return True
    return False
