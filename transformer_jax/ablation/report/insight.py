"""Pictures of why: probes over training and against d_k; attention maps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from transformer_jax.ablation.report import answers, style
from transformer_jax.ablation.report.reading import PHASES, Results, Run
from transformer_jax.ablation.report.tables import Table
from transformer_jax.ablation.study import find_arm

# Drawn; other probes are in the table only.
SERIES = {
  'score_variance': 'variance of scores',
  'entropy': 'entropy (nats)',
  'saturated': 'saturated rows',
  'softmax_gradient': 'gradient at scores',
  'softmax_share': 'share passed',
}
CAPTIONS = {
  'score_variance': 'Variance of the scores that the softmax reads',
  'entropy': 'Entropy of the attention weights of a row',
  'saturated': 'Share of rows in which one weight is nearly all',
  'softmax_gradient': 'Norm of the gradient that has passed the softmax',
  'softmax_share': 'Gradient behind the softmax over gradient before it',
}
SITES = {
  'encoder_self': 'encoder self-attention',
  'decoder_self': 'decoder self-attention',
  'cross': 'encoder-decoder attention',
}
NEEDLESS = 0.01  # nats a token
_BY = '_chance'
WIDTHS = ('model.d_k', 'model.d_v')


def _over_steps(run: Run, site: str, name: str) -> dict[int, float]:
  """{step: mean over layers and heads}; steps without a number are left out."""
  probes = run.body.get('probes') or {}
  named = probes.get(site)
  if not isinstance(named, Mapping) or name not in named:
    return {}
  steps = named.get('step', probes.get('step', []))
  values = {}
  for step, value in zip(steps, named[name], strict=True):
    numbers = np.asarray(value, np.float64)
    known = numbers[np.isfinite(numbers)]
    if known.size:
      values[int(step)] = float(known.mean())
  return values


def _sites(results: Results, phase: str, name: str) -> list[str]:
  return [
    site
    for site in SITES
    if any(
      _over_steps(run, site, name) for run in results.runs if run.phase == phase
    )
  ]


def _log_if_wide(axes: Any) -> None:
  values = [y for line in axes.get_lines() for y in line.get_ydata()]
  if values and min(values) > 0 and max(values) / min(values) > 30:
    axes.set_yscale('log')


Lines = Mapping[str, Mapping[int, float]]


def _panels(
  lines: Mapping[str, Lines],
  look: Mapping[str, style.Look],
  label: str,
  *,
  x_label: str,
  widths: Sequence[int],
) -> Callable[[Any], None]:
  """One panel a site, below each other; lines {site: {arm: {x: y}}}."""

  def paint(figure: Any) -> None:
    grid = figure.subplots(len(lines), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (site, arms) in zip(grid, lines.items(), strict=True):
      for arm, points in arms.items():
        at = sorted(points)
        axes.plot(
          at,
          [points[x] for x in at],
          color=look[arm].color,
          linestyle=look[arm].line,
          marker=look[arm].marker,
          markevery=max(1, len(at) // 6),
          label=style.plain(style.short(arm)),
        )
      _log_if_wide(axes)
      axes.set_title(SITES[site], loc='left')
      axes.set_ylabel(label)
      axes.grid(alpha=0.25)
    grid[-1].set_xlabel(x_label)
    if widths:
      grid[-1].set_xscale('log', base=2)
      grid[-1].set_xticks(widths, [str(width) for width in widths])
      grid[-1].minorticks_off()
    style.legend_below(figure, grid[0])

  return paint


def over_training(
  results: Results, phase: str, name: str
) -> list[style.Picture]:
  """One probe, one line an arm: mean of seeds, layers and heads."""
  lines: dict[str, dict[str, dict[int, float]]] = {}
  for site in _sites(results, phase, name):
    for variant in results.variants:
      gathered: dict[int, list[float]] = {}
      for run in results.of(variant, phase):
        for step, value in _over_steps(run, site, name).items():
          gathered.setdefault(step, []).append(value)
      if gathered:
        lines.setdefault(site, {})[variant] = {
          step: float(np.mean(values)) for step, values in gathered.items()
        }
  found = []
  arms = list(dict.fromkeys(arm for site in lines.values() for arm in site))
  for part, group in enumerate(style.groups(arms) if arms else []):
    shown = {
      site: {arm: at[arm] for arm in group if arm in at}
      for site, at in lines.items()
    }
    look = style.looks(results.variants)
    paint = _panels(shown, look, SERIES[name], x_label='step', widths=())
    found.append(
      style.draw(
        f'probe-{name}-{part + 1}',
        f'{CAPTIONS[name]}, over training: mean of seeds, layers and heads.',
        f'{SERIES[name]} over training of {", ".join(group)}',
        paint,
        height=0.9 + 1.35 * len(lines) + 0.16 * len(group),
      )
    )
  return found


def _others(results: Results, run: Run) -> str:
  """What an arm overrides besides widths: equal ones share a line."""
  words = [
    f'{path.split(".")[-1]}={value}'
    for path, value in find_arm(results.study, run.variant).overrides.items()
    if path not in WIDTHS
  ]
  return ', '.join(words) or 'as the baseline'


def against_d_k(
  results: Results, phase: str, name: str
) -> style.Picture | None:
  """The last value of a probe against d_k; None where d_k does not vary."""
  gathered: dict[str, dict[str, dict[int, list[float]]]] = {}
  for site in _sites(results, phase, name):
    for run in results.runs:
      points = _over_steps(run, site, name)
      if run.phase == phase and points:
        line = gathered.setdefault(site, {}).setdefault(
          _others(results, run), {}
        )
        values = line.setdefault(run.config.model.d_k, [])
        values.append(points[max(points)])
  lines = {
    site: {
      group: {width: float(np.mean(v)) for width, v in at.items()}
      for group, at in groups.items()
    }
    for site, groups in gathered.items()
  }
  every = [
    (g, w) for at in lines.values() for g, line in at.items() for w in line
  ]
  groups = list(dict.fromkeys(group for group, _ in every))
  widths = sorted({width for _, width in every})
  if len(widths) < 2 or len(groups) > style.TOGETHER + 1:
    return None
  paint = _panels(
    lines,
    style.looks(groups),
    SERIES[name],
    x_label='width of a key, d_k',
    widths=widths,
  )
  return style.draw(
    f'probe-{name}-d_k',
    f'{CAPTIONS[name]}, at the end of training against d_k: mean of seeds, '
    'layers and heads.',
    f'{SERIES[name]} against d_k of {", ".join(groups)}',
    paint,
    height=0.9 + 1.35 * len(lines) + 0.16 * len(groups),
  )


def table(results: Results, phase: str) -> Table | None:
  """Every probe at the end of training; None where nothing was probed."""
  names = dict.fromkeys(
    name
    for run in results.runs
    for site in (run.body.get('probes') or {}).values()
    if isinstance(site, Mapping)
    for name in site
    if name != 'step'
  )
  rows = []
  for variant in results.variants:
    for site, where in SITES.items():
      cells = []
      for name in names:
        points = [
          _over_steps(run, site, name) for run in results.of(variant, phase)
        ]
        last = [at[max(at)] for at in points if at]
        cells.append(answers.number(float(np.mean(last)) if last else None))
      if set(cells) - {answers.number(None)}:
        rows.append((variant, where, *cells))
  if not rows:
    return None
  return Table(
    'Probes at the end of training',
    ('variant', 'site', *(name.replace('_', ' ') for name in names)),
    rows,
    f'{PHASES[phase].capitalize()}; mean of seeds, layers and heads.',
  )


def heads(results: Results, phase: str) -> Table | None:
  """How heads of the first seed differ, and what each of them is good for."""
  rows = []
  for run in results.runs:
    seen = (run.body.get('views') or {}).get('heads', {})
    for site, found in seen.items() if run.phase == phase else ():
      far_NHH = np.asarray(found['distance'])
      rise_NH = np.asarray(found['rise'])
      pairs = far_NHH[:, *np.triu_indices(far_NHH.shape[-1], 1)]
      rows.append(
        (
          run.variant,
          SITES[site],
          answers.number(float(pairs.mean()) if pairs.size else None),
          answers.number(float(rise_NH.mean()), signed=True),
          answers.number(float(rise_NH.max()), signed=True),
          answers.number(float(np.mean(rise_NH < NEEDLESS))),
        )
      )
  if not rows:
    return None
  return Table(
    f'Heads, {PHASES[phase]}',
    ('variant', 'site', 'apart', 'rise', 'largest rise', 'needless'),
    rows,
    'Of the first seed, on validation. Apart: Jensen-Shannon distance of the '
    'weights of two heads, 0 the same, 1 no key in common, mean over layers '
    'and pairs. Rise: of the loss, nats a token, when the output of one head '
    f'is nothing. Needless: share of heads whose rise is below {NEEDLESS:g}.',
  )


def alignments(results: Results, phase: str) -> Table | None:
  """Each head of the attention to the source as an alignment of words."""
  rows = []
  pairs = 0
  for run in results.runs:
    found = (run.body.get('views') or {}).get('links')
    if found and run.phase == phase:
      error_NH = np.asarray(found['error'])
      pairs = found['pairs']
      values = (error_NH.min(), error_NH.mean(), error_NH[-1].mean())
      rows.append((run.variant, *(answers.number(float(x)) for x in values)))
  if not rows:
    return None
  return Table(
    f'Heads as alignments, {PHASES[phase]}',
    ('variant', 'best head', 'mean of heads', 'mean of the last layer'),
    rows,
    f'Of the first seed, on {pairs} validation pairs: alignment error rate '
    'against the gold links of task:korean, where each target token is linked '
    'with the source token that is looked at most while it is predicted. '
    '0 is right, 1 all wrong. The best head was chosen on these same pairs.',
  )


def places(results: Results, phase: str) -> Table | None:
  """What a linear map reads off token and position after they are joined."""
  shown = ('token', 'position')
  rows = []
  for run in results.runs:
    seen = (run.body.get('views') or {}).get('places', {})
    for side, found in seen.items() if run.phase == phase else ():
      shares = (
        f'{answers.number(found[name])} ({answers.number(found[name + _BY])})'
        for name in shown
      )
      # An older folder has no pairs.
      near = ', '.join(
        f'{one} and {other} ({answers.number(cosine)})'
        for one, other, cosine in found.get('nearest') or ()
      )
      next_to = answers.number(found['neighbours'])
      rows.append((run.variant, side, *shares, next_to, near or '–'))
  if not rows:
    return None
  return Table(
    f'Tokens and positions, {PHASES[phase]}',
    ('variant', 'stack', *shown, 'nearest is next', 'nearest pairs'),
    rows,
    'Of the first seed, on validation: share of tokens, and of their places, '
    'that a linear map names rightly from what the first layer reads; in '
    'brackets that of always naming the most frequent. Nearest is next: share '
    "of a table's rows whose nearest by cosine is the one before or after. "
    'Nearest pairs: positions, from 0, whose rows are most alike, with their '
    'cosine; of a learned table as training left it.',
  )


def _shade(axes: Any, weight_TS: Any) -> None:
  """Weights as shades: 0 is white, 1 is dark."""
  axes.imshow(
    weight_TS,
    cmap='Blues',
    vmin=0,
    vmax=1,
    aspect='auto',
    interpolation='nearest',
  )


def _map(
  axes: Any, weight_TS: Any, rows: list[str], columns: list[str]
) -> None:
  _shade(axes, weight_TS)
  size = 8.5 if max(len(rows), len(columns)) <= 14 else 6.5
  axes.set_xticks(
    range(len(columns)),
    [style.plain(style.short(t, 10)) for t in columns],
    rotation=60,
    ha='right',
    rotation_mode='anchor',
    fontsize=size,
  )
  axes.set_yticks(
    range(len(rows)),
    [style.plain(style.short(t, 10)) for t in rows],
    fontsize=size,
  )
  axes.tick_params(length=0)


def attention(run: Run, site: str) -> style.Picture | None:
  """Last layer of one site: mean over heads, and every head below it."""
  if run.attention is None:
    return None
  from transformer_jax.inference import attend

  maps = attend.load(run.attention)
  weights_HTS = maps.weights[site][-1]
  rows, columns = maps.sides(site)
  heads = len(weights_HTS)
  across = min(heads, 4)
  down = -(-heads // across)

  def paint(figure: Any) -> None:
    grid = figure.add_gridspec(
      1 + down, across, height_ratios=[3.2, *[1.0] * down]
    )
    figure.suptitle(
      style.plain(style.short(run.variant, 44)), x=0.02, ha='left', fontsize=9
    )
    _map(figure.add_subplot(grid[0, :]), weights_HTS.mean(0), rows, columns)
    for head, weight_TS in enumerate(weights_HTS):
      axes = figure.add_subplot(grid[1 + head // across, head % across])
      _shade(axes, weight_TS)
      axes.set_xticks([])
      axes.set_yticks([])
      axes.set_xlabel(f'head {head + 1}', fontsize=8)

  where = SITES.get(site, site)
  return style.draw(
    f'attention-{site}-{run.identity[:12]}',
    f'{run.variant}, seed {run.seed}: {where}, last layer; above the mean '
    'over heads, below each head. White is 0, dark is 1.',
    f'attention map of {run.variant}: {" ".join(rows)} over '
    f'{" ".join(columns)}',
    paint,
    height=3.4 + 0.9 * down,
  )
