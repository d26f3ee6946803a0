"""The experiment as one frozen value.

Every number and choice of a run is a field here, once. Flags, `--help`,
validation, sweeps, goldens and the tests over all choices are derived from
these fields. The defaults are the base model of Vaswani et al. (2017),
"Attention Is All You Need"; each field names its place in that paper.

A field `affects` the result, or only the run (where things are logged, how
long they are kept). A run that resumes refuses a result field that changed.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any


class ConfigError(ValueError):
  """A config value that cannot be used; the text is one line with the mend."""


def closest(name: str, names: Iterable[str]) -> str:
  """` (did you mean X?)`, or nothing when no name is near."""
  found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
  return f' (did you mean {found[0]}?)' if found else ''


def number(default: int | float | str, help: str, *, affects='result') -> Any:
  """A plain field: an integer, float or string with its meaning."""
  metadata = dict(help=help, affects=affects, choices=None)
  return dataclasses.field(default=default, metadata=metadata)


def choice(*choices: str, help: str, affects='result') -> Any:
  """A field with named values; the first one is the default."""
  metadata = dict(help=help, affects=affects, choices=choices)
  return dataclasses.field(default=choices[0], metadata=metadata)


# data.text -> what BLEU of such text is called. Tokenised BLEU is another
# number than BLEU: it has its own name, so that no table can mix them.
BLEU_NAMES = {'raw': 'bleu', 'pretokenized': 'tokenized_bleu'}

SIDES = ('encoder', 'decoder')  # who reads the source, who reads the target
SITES = ('encoder_self', 'decoder_self', 'cross')  # of attention

_SITE_SCALES = (
  'same',
  'rsqrt_d_k',
  'none',
  'inverse_d_k',
  'learned',
  'folded_init',
  'folded_rate',
  'folded_init_rate',
)
_POSITIONS = ('sinusoid', 'learned', 'none', 'rotary', 'relative')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The network: section 3 of the paper; defaults are Table 3, row base."""

  layers: int = number(6, 'N, layers in the encoder and in the decoder (3.1)')
  d_model: int = number(512, 'D, width of the model (3.1)')
  d_ff: int = number(2048, 'F, hidden width of the feed-forward (3.3)')
  heads: int = number(8, 'H, attention heads (3.2.2)')
  d_k: int = number(64, 'K, width of queries and keys per head (3.2.2)')
  d_v: int = number(64, 'E, width of values per head (3.2.2)')
  score: str = choice(
    'dot',
    'additive',
    'general',
    'cosine',
    'uniform',
    help='how well a key answers a query (3.2.1; Bahdanau; Luong); uniform '
    'does not look at all, the negative control',
  )
  scale: str = choice(
    *_SITE_SCALES[1:],
    help='factor on the scores of every attention (3.2.1); learned: one per '
    'head, which starts at 1/sqrt(d_k); folded: 1/sqrt(d_k) is instead in the '
    "query's initial values, in its learning rate, or in both",
  )
  scale_encoder_self: str = choice(*_SITE_SCALES, help='of that site alone')
  scale_decoder_self: str = choice(*_SITE_SCALES, help='of that site alone')
  scale_cross: str = choice(*_SITE_SCALES, help='of that site alone')
  query_key_init: str = choice(
    'recipe',
    'fan_in',
    'fan_avg',
    help='query and key weights start as in initialization; with variance '
    '1/d_model; or 2/(d_model + heads d_k)',
  )
  head_init: str = choice(
    'own',
    'alike',
    help="initial values of each head's queries, keys, values and scores: its "
    "own (3.2.2), or a copy of the first head's; the control for heads that "
    'differ only because they start apart',
  )
  projections: str = choice(
    'separate',
    'shared_query_key',
    'shared_key_value',
    'identity',
    help='weights of queries, keys and values: three (3.2.2), one less, or '
    'none, where attention reads the embeddings themselves',
  )
  output_projection: str = choice(
    'linear', 'none', help='W_O (3.2.2), or the heads side by side'
  )
  causal_mask: str = choice(
    'present',
    'absent',
    help='mask of later target positions in the decoder (3.2.3): present or '
    'absent',
  )
  norm: str = choice(
    'layer',
    'rms',
    'batch',
    'none',
    help='of the residual sums (3.1); batch: over the tokens of a batch, so '
    'that training sees batch mates and later tokens',
  )
  residual: str = choice(
    'sum', 'none', help='x + f(x) around each sub-layer (3.1), or f(x)'
  )
  norm_order: str = choice(
    'post', 'pre', help='norm after the residual sum (3.1), or before'
  )
  activation: str = choice(
    'relu', 'gelu', 'silu', help='of the feed-forward (3.3, eq. 2)'
  )
  position: str = choice(
    *_POSITIONS,
    help='position code (3.5; Table 3 E); rotary turns queries and keys, '
    'relative adds to scores by distance (Su 2021; Raffel 2020)',
  )
  position_decoder: str = choice(
    'same', *_POSITIONS, help='of the decoder alone'
  )
  position_join: str = choice(
    'add',
    'concat_project',
    'concat_random',
    'add_mapped',
    'concat_narrow',
    help='x + p (3.5); [x; p] W, where W starts as [I; I], which is the sum, '
    'or random; x + p W, a control; [x; p], where x is narrower by d_position',
  )
  d_position: int = number(
    64, 'width of the position in position_join=concat_narrow'
  )
  max_positions: int = number(
    512, 'rows of a learned position table; a sinusoid has no limit'
  )
  tie: str = choice(
    'all',
    'decoder',
    'none',
    help='which of source, target and output embedding are one (3.4)',
  )
  embedding_scale: str = choice(
    'sqrt_d_model', 'none', help='factor on the embeddings (3.4)'
  )
  initialization: str = choice(
    'tensor2tensor',
    'fairseq',
    help='Glorot everywhere, as the authors; or smaller queries, keys, '
    'values and feed-forward, as fairseq has them',
  )
  dropout: float = number(
    0.1, 'P_drop on sub-layer outputs and on the embedding sum (5.4)'
  )
  attention_dropout: float = number(0.0, 'dropout on attention weights')
  feed_forward_dropout: float = number(0.0, 'dropout after the activation')
  compute_dtype: str = choice(
    'float32', 'bfloat16', help='of matrix products; the rest is float32'
  )
  remat: str = choice(
    'none', 'layer', help='recompute each layer in the backward pass'
  )
  attention_implementation: str = choice(
    'auto',
    'naive',
    'blockwise',
    'fused',
    'kernel',
    help='the program that computes attention: by platform and size; the '
    'formula, which holds all B*H*T*S weights; in blocks; that of jax.nn '
    '(dot); a GPU kernel (additive). A study that times names one for all',
    affects='run',
  )
  layer_loop: str = choice(
    'scan',
    'unroll',
    help='one layer program for N layers, or N of them',
    affects='run',
  )

  def at(self, axis: str, site: str) -> str:
    """The choice of `axis` at one site: its own, or that of all.

    An axis has a site where there is a field AXIS_SITE; `same` is its default.
    """
    values = vars(self)
    own = values.get(f'{axis}_{site}', 'same')
    return values[axis] if own == 'same' else own

  def longest(self, side: str) -> int | None:
    """Positions of one of SIDES, EOS included; None when there is no end."""
    learned = self.at('position', side) == 'learned'
    return self.max_positions if learned else None


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Adam and its schedule: section 5.3."""

  schedule: str = choice(
    'paper',
    'inverse_sqrt',
    'constant',
    help='eq. 3 times learning_rate; or a peak of learning_rate, reached '
    'after warmup_steps and falling with 1/sqrt(step); or flat',
  )
  learning_rate: float = number(1.0, 'factor or peak, by the schedule')
  warmup_steps: int = number(4000, 'steps of linear growth (5.3)')
  beta1: float = number(0.9, "Adam's beta_1 (5.3)")
  beta2: float = number(0.98, "Adam's beta_2 (5.3)")
  epsilon: float = number(1e-9, "Adam's epsilon (5.3)")
  clip_norm: float = number(0.0, 'largest gradient norm; 0 does not clip')
  label_smoothing: float = number(0.1, 'epsilon_ls (5.4)')
  accumulate: int = number(
    1, 'parts that a batch is cut into, gradients summed: less memory'
  )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Sentences, vocabulary and batches: section 5.1."""

  source: str = number(
    'task:reverse',
    'files:DIR, tfds:NAME/CONFIG, or task: and one of copy, reverse, sort, '
    'recall (the values that keys were paired with), long_range (the symbol '
    'at a distance), korean',
  )
  pair: str = number('', 'languages, source first, such as en-de')
  train_split: str = number('train', 'name of the training split')
  validation_split: str = number('validation', 'split to choose by')
  test_split: str = number('test', 'split to report')
  text: str = choice(
    'raw',
    'pretokenized',
    help='running text, or text whose tokens are already separated by '
    'spaces (then scores are tokenised BLEU, and say so)',
  )
  vocabulary: str = choice(
    'joint', 'separate', help='one vocabulary for both languages, or two'
  )
  vocabulary_model: str = choice(
    'bpe', 'unigram', help='byte-pair encoding (5.1) or unigram pieces'
  )
  vocabulary_size: int = number(37000, 'pieces in the vocabulary (5.1)')
  max_length: int = number(256, 'longest sentence in tokens, end included')
  over_length: str = choice(
    'drop',
    'refuse',
    help='a training pair longer than max_length: drop and count it, or refuse '
    'the data',
  )
  max_tokens: int = number(
    25000, 'tokens a batch: rows x the longer padded side (5.1)'
  )
  buckets: int = number(12, 'padded shapes that batches come in')
  batches_per_run: int = number(
    4, 'batches of one shape in a row; they can go in one device call'
  )
  seed: int = number(0, 'of the task generator and of the vocabulary')
  task_min_length: int = number(
    4, 'shortest generated sequence, in symbols; of task:recall in pairs'
  )
  task_max_length: int = number(12, 'longest of them')
  task_symbols: int = number(16, 'different symbols of a generated task')
  task_distance: int = number(
    4, 'of task:long_range: how far before the mark the answer stands'
  )
  task_noise: float = number(
    0.0, 'share of target symbols drawn at random, in every split of a task'
  )
  task_train_size: int = number(
    0, 'training pairs of a task; 0: unlimited, of task:korean 20,000'
  )
  task_held_out: int = number(512, 'pairs of each held-out task split')
  cache_dir: str = number(
    '~/.cache/transformer_jax', 'token caches', affects='run'
  )
  tfds_dir: str = number(
    '~/tensorflow_datasets', 'prepared TFDS data', affects='run'
  )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop: how long, how often, what is kept."""

  seed: int = number(0, 'of initial values, dropout and the order of data')
  noise_seed: int = number(
    0, 'other initial values and dropout with the same data; 0: of the seed'
  )
  steps: int = number(100_000, 'updates to make (5.2)', affects='run')
  log_every: int = number(100, 'steps between metric lines', affects='run')
  evaluate_every: int = number(1000, 'steps between validations')
  save_every: int = number(1000, 'steps between checkpoints', affects='run')
  keep_latest: int = number(10, 'newest checkpoints kept', affects='run')
  keep_best: int = number(1, 'best checkpoints kept', affects='run')
  keep_every: int = number(
    0,
    'steps that are a multiple of it are kept for good; 0: none of them',
    affects='run',
  )
  best_metric: str = choice(
    'loss', 'accuracy', 'bleu', help='on validation; bleu is greedy'
  )
  evaluate_bleu: str = choice(
    'best_metric',
    'always',
    help='greedy BLEU in the lines of validations: where it is best_metric; '
    'or whatever that is',
    affects='run',
  )
  max_skipped_steps: int = number(
    0,
    'steps whose loss or gradient is not finite that are left out before the '
    'run is stopped',
    affects='run',
  )
  step_timeout_seconds: int = number(
    3600,
    'of silence after which a stuck process leaves; 0: never',
    affects='run',
  )
  patience: int = number(
    0,
    'evaluations without a better best_metric after which training ends; 0: '
    'never',
    affects='run',
  )


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
  """From the model to text: section 6.1."""

  strategy: str = choice(
    'beam', 'greedy', 'sample', help='how the next token is chosen'
  )
  beam_size: int = number(4, 'hypotheses kept (6.1)')
  penalty: str = choice(
    'paper',
    'length',
    help='of length l: ((5+l)/6)^alpha (6.1), or l^alpha (as fairseq)',
  )
  alpha: float = number(0.6, 'exponent of the length penalty (6.1)')
  stop: str = choice(
    'bound',
    'count',
    help='a beam search ends when none that is live can be better (bound), or '
    'beam_size have ended, each among the beam_size likeliest steps (count, as '
    'fairseq)',
  )
  extra_length: int = number(50, 'longest output = input + this (6.1)')
  temperature: float = number(1.0, 'of sampling; below 1 is sharper')
  top_k: int = number(0, 'sample among the k likeliest; 0: among all')
  seed: int = number(0, 'of sampling')
  n_best: int = number(1, 'hypotheses printed a sentence')
  max_tokens: int = number(8192, 'rows x beam x source length in a batch')
  average: int = number(1, 'newest checkpoints to average (6.1: 5 or 20)')
  checkpoint: str = choice('latest', 'best', help='which to decode with')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The devices as a grid: how many of them share out each kind of axis.

  The sizes multiply to the number of devices. One of them may be -1, which
  takes what the others leave; all at 1 is the first device alone.
  """

  replica: int = number(1, 'members of a population', affects='run')
  data: int = number(
    -1,
    'shares out the rows of a batch, or the members of a population; -1: all '
    'remaining devices',
    affects='run',
  )
  fsdp: int = number(
    1, 'rows, and with them parameters and moments', affects='run'
  )
  tensor: int = number(1, 'heads, feed-forward and vocabulary', affects='run')
  sequence: int = number(1, 'positions of long sentences', affects='run')


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  model: ModelConfig = ModelConfig()
  optim: OptimConfig = OptimConfig()
  data: DataConfig = DataConfig()
  train: TrainConfig = TrainConfig()
  decode: DecodeConfig = DecodeConfig()
  mesh: MeshConfig = MeshConfig()
