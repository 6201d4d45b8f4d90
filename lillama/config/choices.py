"""The choices that a configuration has, each an enum: YAML and the command line spell a member's name."""

from enum import Enum


class Stage(Enum):
    """Stages of a run, in this order."""

    plan = "plan"
    init = "init"
    distill = "distill"
    finetune = "finetune"  # the whole model at once, from the loss of its predictions
    perplexity = "perplexity"
    zero_shot = "zero_shot"  # the evaluation harness
    throughput = "throughput"  # speed and memory of inference, dense and compressed in turn
    wer = "wer"  # word error rate of a speech model
    samples = "samples"  # generated texts
    stable_rank = "stable_rank"  # of weights and of what they put out
    domains = "domains"  # perplexity on texts of several kinds
    bench = "bench"  # what the engine costs; not one of the stages that make a model


MADE_BY_DEFAULT = (Stage.plan, Stage.init, Stage.distill, Stage.perplexity)


PLANNED = (Stage.plan, Stage.init, Stage.bench)  # stages that need a plan


# Of a finished model.
MEASURES = (Stage.zero_shot, Stage.throughput, Stage.wer, Stage.samples, Stage.stable_rank, Stage.domains)


class Weights(Enum):
    """Origin of the weights."""

    pretrained = "pretrained"
    random = "random"


class Task(Enum):
    """Task of a model, which chooses its transformers class; ``auto`` reads it from the configuration."""

    auto = "auto"
    causal_lm = "causal_lm"
    seq2seq_lm = "seq2seq_lm"  # encoder-decoders for text
    speech_seq2seq = "speech_seq2seq"
    masked_lm = "masked_lm"  # BERT-like encoders


class Scope(Enum):
    """Side of an encoder-decoder that is compressed."""

    all = "all"
    encoder = "encoder"
    decoder = "decoder"


class Dtype(Enum):
    """The numbers that the model computes in; ``auto`` is bfloat16 on a GPU and float32 on a CPU."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class FactorForm(Enum):
    """Storage of the factors of a matrix [out, in] at rank r."""

    plain = "plain"  # A [out, r] and B [r, in]
    pivoted = "pivoted"  # r columns of B are the identity, which is not stored: r * (out + in - r) numbers


class Rounding(Enum):
    """Quantity that ``uniform`` takes the fraction of."""

    parameters = "parameters"  # the model shrinks by the asked amount
    rank = "rank"  # the authors' code: a fraction of the largest rank that saves; the model shrinks by less


class Weighting(Enum):
    """Way in which ``spectrum`` counts the output energy that a matrix loses."""

    relative = "relative"  # as a share of the matrix's own: every matrix matters alike
    absolute = "absolute"  # as it is: large outputs matter more


class StudentInputs(Enum):
    """Whose activations a student block is fed with while it learns."""

    teacher = "teacher"  # Eq. 8
    student = "student"  # Eq. 9
    teacher_student = "teacher_student"  # Eq. 10


class Distance(Enum):
    """Distance between a student's output and the teacher's."""

    l1_cosine = "l1_cosine"  # Eq. 7
    mse = "mse"
    normalized_mse = "normalized_mse"


class Reduction(Enum):
    """Reduction of the distances of a batch's tokens to one number."""

    mean = "mean"
    sum = "sum"


class Split(Enum):
    """Factor that carries the singular values."""

    us_v = "us_v"  # Eq. 2
    symmetric = "symmetric"  # the authors' code


class OutputMoment(Enum):
    """Part that ``init=kfac`` keeps of the second moment of the gradients at a matrix's outputs."""

    full = "full"
    diagonal = "diagonal"  # out numbers instead of out^2


class Source(Enum):
    """Source of text."""

    hub = "hub"
    local = "local"
    stdlib_docs = "stdlib_docs"
    speech = "speech"  # a folder of sound files with their transcripts
    mixed = "mixed"  # several of these, with shares (data=mixed)
    calibration = "calibration"  # of a fine-tuning: what the run calibrates on, with a budget of its own
    generated = "generated"  # what the dense model writes (data=generated)


class Opening(Enum):
    """Beginning of a text that a model writes."""

    bos = "bos"  # the tokenizer's first token; where it has none, the one that ends a text
    token = "token"  # after that, a random token of the vocabulary


class Format(Enum):
    """Parser of a local file; ``auto`` goes by its name, ``.gz``, ``.bz2``, ``.xz`` and ``.zst`` aside."""

    auto = "auto"
    text = "text"  # a file is one row
    jsonl = "jsonl"  # a JSON object a line
    json = "json"  # a JSON list of objects, or an object a line
    csv = "csv"  # columns named in the first line
    tsv = "tsv"
    parquet = "parquet"
    arrow = "arrow"  # as datasets.save_to_disk writes it


class InvalidRows(Enum):
    """Treatment of a row that cannot be read, or that the chat template refuses."""

    refuse = "refuse"  # the run, before a model is loaded, in a line that names the row
    skip = "skip"  # the row; results.json counts how many


class Packing(Enum):
    """Packing of rows into blocks of ``seq_len`` tokens."""

    packed = "packed"  # rows follow each other, nothing is padded but the very last block
    padded = "padded"  # one row a block, cut at seq_len, the rest padded and masked


class Order(Enum):
    """In which order rows are taken."""

    shuffled = "shuffled"
    longest_first = "longest_first"
    given = "given"


class Template(Enum):
    """Template that makes text of instruction and conversation rows."""

    auto = "auto"  # the tokenizer's chat template, where it has one
    none = "none"  # turns joined by blank lines


class SystemTurns(Enum):
    """Treatment of the system turns of conversations."""

    keep = "keep"
    drop = "drop"


class Join(Enum):
    """Separator of two rows of a packed stream."""

    auto = "auto"  # blank_line for plain text, nothing after a chat template, eos otherwise
    eos = "eos"
    blank_line = "blank_line"
    none = "none"


class Train(Enum):
    """Parameters of a compressed block that learn."""

    factors = "factors"
    block = "block"


class Tune(Enum):
    """Parameters that a fine-tuning changes."""

    none = "none"  # nothing: the stage is left out, for sweeps
    all = "all"
    factors = "factors"  # of a compressed model; everything dense stays
    lora = "lora"  # low-rank updates of the factors, of a dense model's matrices; merged into them at the end


class Objective(Enum):
    """Loss of a fine-tuning."""

    lm = "lm"  # the cross-entropy of the tokens that follow
    kl = "kl"  # how far the distributions of the next token are from the dense model's


class LearningRate(Enum):
    """The shape of the learning rate over a run."""

    constant = "constant"
    cosine = "cosine"


class AdamPrecision(Enum):
    """The numbers that AdamW keeps its two moments in."""

    float32 = "float32"  # those of the weights that learn: narrower where distill.master_weights is off
    int8 = "int8"  # torchao's AdamW8bit


class OutOfMemory(Enum):
    """Response to a device that has no memory left for a step."""

    stop = "stop"  # with a line that says which setting to lower
    halve = "halve"  # half as many sequences at a time, from there on


class Place(Enum):
    """Place where the blockwise schedule keeps the hidden states between two blocks."""

    memory = "memory"  # the host's
    disk = "disk"  # memory-mapped files in the run's folder


class Parallel(Enum):
    """Work that the processes of a torchrun share out; a single process does everything itself."""

    data = "data"  # each its part of every batch; gradients are averaged
    blocks = "blocks"  # each its part of the model; activations are passed on


class Keep(Enum):
    """Weights of a block that are kept."""

    last = "last"
    lowest_batch = "lowest_batch"  # the authors' code: those before the step with the lowest single-batch loss


class Normalizer(Enum):
    """Normaliser of transcripts, before their words are compared: both are Whisper's own."""

    english = "english"
    basic = "basic"  # any language


class LoggerKind(Enum):
    """Destination of metrics while a run is under way."""

    none = "none"
    csv = "csv"
    wandb = "wandb"
