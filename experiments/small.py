"""The small model and embedded task that studies on two cores start from."""

from transformer_jax.ablation.study import LearningRates

# Reverse 8 symbols: the decoder has to look at the other end of the sentence
# at each step, and the right answer is known.
SMALL: dict[str, int | float | str] = {
  'model.layers': 1,
  'model.d_model': 32,
  'model.d_ff': 64,
  'model.heads': 1,
  'model.d_k': 16,
  'model.d_v': 16,
  # Pairs are never seen twice: there is nothing to regularise.
  'model.dropout': 0.0,
  'optim.schedule': 'inverse_sqrt',
  'optim.learning_rate': 4e-3,
  'optim.warmup_steps': 100,
  'optim.label_smoothing': 0.0,
  'data.source': 'task:reverse',
  'data.task_min_length': 8,
  'data.task_max_length': 8,
  'data.max_length': 9,
  'data.max_tokens': 288,
  'data.buckets': 1,
  'data.batches_per_run': 10,
  # The run ends before the baseline is at its ceiling, where arms cannot be
  # told apart: eighty steps later it has 99 of 100 symbols right.
  'train.steps': 120,
  'train.log_every': 20,
  'train.evaluate_every': 20,
  'train.save_every': 250,
}

# The recipe of SMALL and its neighbours, for each arm to be given its own.
TUNING = LearningRates(
  rates=(2e-3, 4e-3, 8e-3), warmups=(100,), seeds=(100, 101, 102)
)
# Where arms change what a step does at the start of training, a rate that is
# too high at first may be right later: a short warmup, and one nearly as long
# as the run.
TUNING_WARMUP = LearningRates(
  rates=TUNING.rates, warmups=(20, 100), seeds=TUNING.seeds
)

# Probes that show why an arm does not learn. The default study takes these,
# `scaling` and `sites` take all probes.
SOFTMAX_PROBES = (
  'score_variance',
  'entropy',
  'saturated',
  'softmax_gradient',
  'softmax_share',
)
