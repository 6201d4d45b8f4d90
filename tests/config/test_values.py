"""Values that can be none, whatever the key: one line that names it, before a model is loaded."""

import dataclasses
import json
import math
import shutil
from functools import partial

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

import lillama.run.fits
import lillama.run.supply
from lillama.config import ModelConfig, PlanFileConfig, Stage
from lillama.config.limits import LARGEST, PATHS, check_values
from lillama.core.errors import ConfigError
from lillama.model.architecture import inline_architecture
from lillama.model.remote_code import code_options
from lillama.model.source import ModelSource
from lillama.model.targets import ModelShape
from lillama.run.command_line import one_line
from lillama.run.pipeline import run
from lillama.run.run import Run
from lillama.run.saving import plan_beside
from lillama.strategy.plan import plan_file
from tests.conftest import ROOT, TINY_LLAMA, TINY_RUN, composed
from tests.families import FAMILIES

REFUSED = (ConfigError, OmegaConfBaseException, HydraException)
LONG = "x" * 300
HUGE = 10**30


def places(config, holder=None, prefix=""):
    """Every field of a configuration that is a plain value: its key, what holds it, its name."""
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value) and field.name != "experiment":
            yield from places(value, config, f"{key}.")
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            yield key, config, field.name


@pytest.fixture(scope="module")
def whole():
    return composed(*TINY_RUN, "evaluate.tasks_dir=/tmp", "evaluate.baseline=x/y", "data=local", "data.path=/tmp")


def test_every_number_has_bounds_and_every_path_may_be_looked_at(whole):
    seen = set()
    for key, holder, name in places(whole):
        before = getattr(holder, name)
        wrong = {int: [HUGE, -HUGE], float: [math.nan, math.inf, -math.inf], str: ["a\0b"]}.get(type(before), [])
        wrong = [*wrong, *([LONG, "~no_such_user/x", "", " "] if name in PATHS and isinstance(before, str) else [])]
        for value in wrong:
            setattr(holder, name, value)
            with pytest.raises(ConfigError) as caught:
                check_values(whole)
            assert str(caught.value).startswith(f"{key}="), (key, value)
            assert "\n" not in str(caught.value)
            seen.add(key)
        setattr(holder, name, before)
    check_values(whole)
    assert {"seed", "data.seq_len", "distill.lr", "data.path", "cache_dir", "evaluate.baseline", "bench.rounds"} <= seen


def test_what_is_legal_today_stays_so(whole):
    assert LARGEST["tokens"] == 10**12
    for words in (["seed=-1"], ["data.tokens=13_000_000"], ["data.seq_len=1048576"], ["data.tokens=null"]):
        composed(*TINY_RUN, *words)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["distill.betas=[0.9]"], "distill.betas=[0.9]"),
        (["distill.betas=[]"], "distill.betas=[]"),
        (["distill.betas=[0.9,0.9,0.9]"], "distill.betas="),
        (["finetune.betas=[0.9]"], "finetune.betas=[0.9]"),
        (["distill.betas=[nan,0.9]"], "distill.betas="),
        (["evaluate.throughput.lengths=[16,1000000000000]"], "evaluate.throughput.lengths[1]=1000000000000"),
        (["stages=[samples]", f"evaluate.samples.seeds=[0,{HUGE}]"], "evaluate.samples.seeds[1]="),
        (["data=local", "data.path=/tmp", 'data.files="/etc/*"'], "data.files=/etc/*"),
        (["data=local", "data.path=/tmp", 'data.files="a/../../*"'], "data.files=a/../../*"),
        (["data=local", "data.path=/tmp", 'data.files="a**b"'], "data.files=a**b"),
        (["evaluate/domains=hub", "evaluate.domains.texts.code.files=/x"], "evaluate.domains.texts.files=/x"),
        (["evaluate/domains=hub", "evaluate.domains.texts.code.seq_len=1"], "evaluate.domains.texts.seq_len=1"),
        (["evaluate/wer=local", "stages=[wer]"], "evaluate.wer.path=None"),
        (["cache_limit_gb=1e300"], "cache_limit_gb=1e+300"),
        (["name=''"], "name=''"),
        (["model.targets.include=['']"], "model.targets.include[0]=''"),
        (["model.revision=''"], "model.revision=''"),
        (["model.device=cuda:99999999999999999999"], "model.device="),
        (["model.architecture.hidden_size=inf"], "model.architecture.hidden_size=inf"),
        (["snapshot=null"], "Error merging override snapshot=null"),
        (["finetune.lora=null"], "Error merging override finetune.lora=null"),
        (["evaluate.zero_shot.tasks=[null]"], "Error merging override evaluate.zero_shot.tasks=[null]"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_told_by_its_key(words, key):
    with pytest.raises(REFUSED) as caught:
        composed(*TINY_RUN, *words)
    assert one_line(caught.value).startswith(key)


@pytest.mark.parametrize("word", ["model=null", "strategy=null", "scale=null", "hydra/launcher=null"])
def test_a_group_that_is_null_is_bad_input_and_named(word, cli):
    fitting = [own for own in TINY_RUN if own.partition("=")[0] != word.partition("=")[0]]
    status, _, err = cli(*fitting, word)
    assert status == 2
    assert err.splitlines() == [f"error: {word}: a group takes one of its options, or is left out"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"hiden_size": 48}, r"^model.architecture.hiden_size: llama has no such key; did you mean hidden_size"),
        ({"num_hidden_layer": 1}, r"^model.architecture.num_hidden_layer: llama has no such key; did you mean num_"),
        ({"to_dict": 1}, r"^model.architecture.to_dict: llama has no such key"),
        ({"auto_map": {"AutoConfig": "stranger/code--x.Y"}}, r"^model.architecture.auto_map: llama has no such key"),
        ({"num_hidden_layers": 10**9}, r"^model.architecture.num_hidden_layers=1000000000: must be at most 4,096"),
        ({"num_attention_heads": 10**6}, r"^model.architecture.num_attention_heads=1000000: must be at most"),
        ({"hidden_size": 10**12}, r"^model.architecture.hidden_size=1000000000000: must be at most"),
        ({"rope_parameters": {"rope_theta": math.inf}}, r"^model.architecture.rope_parameters.rope_theta=inf: must be"),
        ({"hidden_size": "many"}, r"^model.architecture: not an architecture of llama"),
        ({"num_attention_heads": 0}, r"^model.architecture: not an architecture of llama"),
    ],
)
def test_an_architecture_is_checked_key_by_key(given, said):
    with pytest.raises(ConfigError, match=said):
        inline_architecture(TINY_LLAMA | given)


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "conf" / "model").glob("*.yaml")))
def test_the_architectures_of_our_own_are_known(name):
    architecture = composed(f"model={name}", *(["model.path=x/y"] if name == "hub" else [])).model.architecture
    if architecture:
        assert inline_architecture(architecture).model_type == architecture["model_type"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_familys_code_reads_is_known(family):
    assert inline_architecture({"model_type": family, **FAMILIES[family]}).model_type == family


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["model.architecture.hidden_size=10000000"], "model.architecture: "),
        (["+model.architecture.head_dim=100000000"], "model.architecture: "),
        (["stages=[plan,init,finetune]", "finetune=lora", "finetune.lora.rank=1000000000"], "finetune.lora.rank="),
        (["stages=[finetune]", "model.architecture.intermediate_size=2000000000"], "model.architecture: "),
        (["stages=[perplexity]", "model.architecture.vocab_size=2000000000"], "model.architecture: "),
    ],
)
def test_what_the_machine_cannot_hold_is_refused_from_shapes(words, key, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    status, _, err = cli(*TINY_RUN, *words, f"hydra.run.dir={tmp_path}")
    (error,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert status == 2
    assert error.startswith(f"error: {key}")
    assert "GB of memory" in error


@pytest.mark.parametrize(("there", "fits"), [(0, True), (-1, False)])
def test_the_bound_is_what_the_weights_take(there, fits, monkeypatch, tmp_path):
    config = composed(*TINY_RUN, "model.dtype=float32", "model.device=cpu")
    weights = sum(4 * parameter.numel() for parameter in ModelSource(config.model, tmp_path).load().parameters())
    monkeypatch.setattr(lillama.run.fits, "host_memory", lambda: weights + there)
    if fits:
        lillama.run.fits.check_memory(Run.of(config))
    else:
        with pytest.raises(ConfigError, match="parameters need"):
            lillama.run.fits.check_memory(Run.of(config))
    lillama.run.fits.check_memory(Run.of(composed(*TINY_RUN, "model.device=cpu", "stages=[plan]")))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    run(composed(*TINY_RUN, "init=svd", "stages=[plan,init]"), folder)
    return folder / "checkpoint"


@pytest.fixture
def refusal(cli, tmp_path, monkeypatch):
    """The line by which a request is refused before a model is loaded."""
    return partial(refused, cli, tmp_path, monkeypatch)


def refused(cli, tmp_path, monkeypatch, *words):
    monkeypatch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    fitting = [
        own for own in TINY_RUN if not own.startswith(("model=", "strategy")) or not words[0].startswith(own[:5])
    ]
    status, _, err = cli(*fitting, *words, f"hydra.run.dir={tmp_path / 'run'}")
    lines = [line for line in err.splitlines() if line.strip() and " INFO " not in line]
    assert (status, len(lines)) == (2, 1), err
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize("stages", ["bench", "plan", "plan,zero_shot", "plan,throughput"])
def test_a_checkpoint_is_not_planned_again(stages, checkpoint, refusal):
    words = ("model=hub", f"model.path={checkpoint}", f"stages=[{stages}]")
    assert refusal(*words).startswith(f"model.path={checkpoint}: is compressed already")


RANK = '{"ranks": {"model.layers.0.self_attn.q_proj": %s}}'
BROKEN = [
    "{",
    "{}",
    "[1]",
    '{"ranks": 3}',
    "[" * 10**5,
    *(RANK % rank for rank in ("Infinity", "1e999", "1.5", "true")),
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_plan_is_named_where_it_is_replayed(text, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"^strategy.file={file}: not a readable plan.json"):
        plan_file(ModelShape(1, 1, ()), 1, PlanFileConfig(file=str(file)))


def test_a_broken_plan_is_bad_input(refusal, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(RANK % "Infinity")
    assert refusal("strategy=plan", f"strategy.file={file}").startswith(f"strategy.file={file}: ")


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_plan_beside_a_checkpoint_is_named_before_it_is_tuned(text, whole, checkpoint, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    if text.startswith('{"ranks": {'):
        known = json.loads((checkpoint / "plan.json").read_text())
        (tmp_path / "plan.json").write_text(json.dumps(known | json.loads(text)))
    model = dataclasses.replace(whole.model, path=str(tmp_path))
    config = dataclasses.replace(whole, model=model, stages=[Stage.finetune])
    with pytest.raises(ConfigError, match=rf"^model.path={tmp_path}: its plan.json is damaged"):
        plan_beside(Run.of(config))
    assert plan_beside(Run.of(dataclasses.replace(config, model=dataclasses.replace(model, path=str(checkpoint)))))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("evaluate.baseline", "/no/such/place"),
        ("evaluate.baseline", "checkpoint"),
        ("evaluate.baseline", "empty"),
        ("evaluate.baseline", "package://no_such_package/x.gguf"),
        ("model.tokenizer", "/no/such/place"),
        ("model.tokenizer", "empty"),
        ("model.tokenizer", "broken"),
    ],
)
def test_a_wrong_baseline_or_tokenizer_is_told_by_its_own_key(key, value, checkpoint, refusal, tmp_path):
    (tmp_path / "empty").mkdir()
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    (broken / "tokenizer.json").write_text('{"model": 3}')
    value = {"checkpoint": checkpoint, "empty": tmp_path / "empty", "broken": broken}.get(value, value)
    words = ("model=hub", f"model.path={checkpoint}", "stages=[perplexity]", f'{key}="{value}"')
    assert refusal(*words).startswith(f"{key}={value}: ")


def test_a_chat_template_that_is_not_there_is_told_before_tasks_are_read(refusal):
    words = ("model=tiny_random", "stages=[zero_shot]", "evaluate.zero_shot.chat_template=true")
    line = refusal(*words)
    assert line == "evaluate.zero_shot.chat_template=true: the model's tokenizer has none"


def test_memory_that_there_is_not_is_one_line(cli, tmp_path, monkeypatch):
    for error in (
        MemoryError("Unable to allocate 640. GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("lillama.run.pipeline.run", fail)
        status, _, err = cli(*TINY_RUN, f"hydra.run.dir={tmp_path}")
        assert status == 2
        assert err.splitlines() == [f"error: out of memory: {error}"]


COMMIT = "0123456789abcdef" * 2 + "01234567"


def remote(**given):
    return ModelConfig(name="x", **{"path": "owner/name", "trust_remote_code": True} | given)


def test_our_own_options_run_no_code_of_a_model():
    for file in (ROOT / "conf" / "model").glob("*.yaml"):
        assert "trust_remote_code: true" not in file.read_text(), file


@pytest.mark.parametrize("revision", [None, "main", "v1", "0" * 39, COMMIT.upper()])
def test_code_from_the_hub_is_pinned(revision):
    with pytest.raises(ConfigError, match=r"owner/name.*model\.revision=COMMIT"):
        code_options(remote(revision=revision), "owner/name", None, "model.path")
    assert code_options(remote(trust_remote_code=False), "owner/name", None, "model.path") == {
        "trust_remote_code": False
    }


def test_code_runs_from_the_pinned_commit_only(tmp_path):
    config = remote(revision=COMMIT)
    found = code_options(config, "owner/name", None, "model.path")
    assert found == {"trust_remote_code": True, "code_revision": COMMIT}
    with pytest.raises(ConfigError, match=r"model\.tokenizer=other/name"):
        code_options(config, "other/name", None, "model.tokenizer")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_local_folder_runs_its_own_code_and_no_other_repositorys(file, tmp_path):
    config = remote(path=str(tmp_path))
    (tmp_path / file).write_text(json.dumps({"auto_map": {"AutoModel": "modeling.Own"}}))
    assert code_options(config, str(tmp_path), tmp_path, "model.path") == {"trust_remote_code": True}
    (tmp_path / file).write_text(json.dumps({"auto_map": {"AutoTokenizer": [None, "stranger/code--modeling.Own"]}}))
    with pytest.raises(ConfigError, match=r"stranger/code"):
        code_options(config, str(tmp_path), tmp_path, "model.path")
