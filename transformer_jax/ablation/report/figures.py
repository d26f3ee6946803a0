"""Learning curves, the forest of differences, quality against cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from transformer_jax.ablation import paired_tests
from transformer_jax.ablation.report import answers, style
from transformer_jax.ablation.report.reading import (
  PHASES,
  TUNED,
  Results,
  Row,
  Run,
  median_of,
)
from transformer_jax.ablation.study import METRICS, arm_of
from transformer_jax.ablation.tuning import WARMUP


def _mean_curve(runs: Sequence[Run], split: str, metric: str):
  """steps_P, mean_P, low_P, high_P over the seeds that are still there."""
  values: dict[int, list[float]] = {}
  for run in runs:
    for step, value in run.curves.get(split, {}).get(metric, ()):
      values.setdefault(step, []).append(value)
  steps_P = np.array(sorted(values))
  columns = [np.array(values[step]) for step in steps_P]
  return (
    steps_P,
    np.array([column.mean() for column in columns]),
    np.array([column.min() for column in columns]),
    np.array([column.max() for column in columns]),
  )


def has_curve(runs: Sequence[Run], split: str, metric: str) -> bool:
  return any(len(run.curves.get(split, {}).get(metric, ())) > 1 for run in runs)


def curves(
  results: Results, phase: str, split: str, metric: str
) -> list[style.Picture]:
  """Mean over seeds with the band from the lowest seed to the highest."""
  arms = {name: results.of(name, phase) for name in results.variants}
  arms = {n: c for n, c in arms.items() if has_curve(c, split, metric)}
  if not arms:
    return []
  return [
    _curves(results, {name: arms[name] for name in group}, split, metric, i)
    for i, group in enumerate(style.groups(list(arms)))
  ]


def _curves(
  results: Results,
  arms: Mapping[str, Sequence[Run]],
  split: str,
  metric: str,
  part: int,
) -> style.Picture:
  look, named = style.looks(results.variants), answers.metric(metric)
  phase = next(iter(arms.values()))[0].phase

  def paint(figure: Any) -> None:
    axes = figure.subplots()
    for name, runs in arms.items():
      color, marker, line = look[name]
      steps_P, mean_P, low_P, high_P = _mean_curve(runs, split, metric)
      axes.fill_between(
        steps_P, low_P, high_P, color=color, alpha=0.18, linewidth=0
      )
      axes.plot(
        steps_P,
        mean_P,
        color=color,
        linestyle=line,
        marker=marker,
        markevery=max(1, len(steps_P) // 6),
        label=style.plain(style.short(name)),
      )
      for run in runs:
        points = run.curves.get(split, {}).get(metric, ())
        if run.diverged and points:
          axes.plot(*points[-1], marker='x', color=color, markersize=8)
    axes.set_xlabel('step')
    axes.set_ylabel(_label(metric))
    axes.set_title(PHASES[phase], loc='left')
    axes.grid(alpha=0.25)
    style.legend_below(figure, axes)

  seeds = max(len(runs) for runs in arms.values())
  return style.draw(
    f'curves-{metric}-{phase}-{part + 1}',
    f'{named.name["en"].capitalize()} over training, {PHASES[phase]}: mean of '
    f'up to {seeds} seeds, band from the lowest seed to the highest; '
    'a cross marks the last value before a run diverged.',
    f'learning curves of {", ".join(arms)}',
    paint,
    height=2.7 + 0.16 * len(arms),
  )


def _label(metric: str) -> str:
  named = answers.metric(metric)
  unit = named.unit['en']
  return named.name['en'] + (f' ({unit})' if unit else '')


def _forest_rows(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
  """Points and intervals; an open limit ends in an arrow at the edge."""
  ends = [
    limit
    for row in rows
    for limit in (*(answers.limits(row) or ()), row['difference'], 0.0)
    if math.isfinite(limit)
  ]
  width = (max(ends) - min(ends)) or 1.0
  left, right = min(ends) - 0.08 * width, max(ends) + 0.08 * width
  for y, row in enumerate(rows):
    color = style.COLORS[1] if row['phase'] == TUNED else style.COLORS[0]
    filled = color if row['primary'] else 'white'
    marker = 's' if row['phase'] == TUNED else 'o'
    low, high = answers.limits(row) or (row['difference'], row['difference'])
    axes.plot([max(low, left), min(high, right)], [y, y], color=color)
    for limit, edge, arrow in ((low, left, '<'), (high, right, '>')):
      if math.isinf(limit):
        axes.plot(edge, y, marker=arrow, color=color, clip_on=False)
    axes.plot(
      row['difference'],
      y,
      marker=marker,
      color=color,
      markerfacecolor=filled,
      markersize=6,
    )
    if row['margin'] is not None:
      axes.fill_betweenx(
        [y - 0.4, y + 0.4],
        -row['margin'],
        row['margin'],
        color=style.GREY,
        alpha=0.15,
        linewidth=0,
      )
  axes.set_xlim(left, right)


def _comparison(row: Row) -> str:
  """What a line of the forest is about; two lines where one is too long."""
  variant = style.short(arm_of(row['variant']))
  baseline = style.short(arm_of(row['baseline']))
  tuned = ', tuned' if row['phase'] == TUNED else ''
  space = ' ' if len(variant + baseline + tuned) < 46 else '\n'
  return style.plain(f'{variant}{space}against {baseline}{tuned}')


def forest(results: Results, metric: str) -> style.Picture | None:
  """Every difference on one metric with its interval, by planned seeds."""
  rows = [
    row
    for phase in results.phases
    for row in results.rows(phase)
    if row['metric'] == metric
  ]
  if not rows:
    return None
  texts = [_comparison(row) for row in rows]
  line = 0.55 if any('\n' in text for text in texts) else 0.42
  named = answers.metric(metric)
  sign = paired_tests.direction(METRICS[metric])

  def paint(figure: Any) -> None:
    axes = figure.subplots()
    axes.axvline(0, color=style.GREY, linewidth=1)
    _forest_rows(axes, rows)
    for y in range(len(rows)):
      # Names stand above their line: beside it they leave no room for it.
      axes.annotate(
        texts[y],
        (0, y),
        (0, 5),
        xycoords=('axes fraction', 'data'),
        textcoords='offset points',
        fontsize=8,
        va='bottom',
        bbox=dict(facecolor='white', edgecolor='none', pad=0.5),
      ).set_in_layout(False)
    axes.set_ylim(len(rows) - 0.5, -0.9)
    axes.set_yticks([])
    axes.spines['left'].set_visible(False)
    unit = named.unit['en']
    side = 'right' if sign > 0 else 'left'
    axes.set_xlabel(
      f'difference in {named.name["en"]}{f", {unit}" if unit else ""}\n'
      f'(variant minus baseline; {side} is better)'
    )

  return style.draw(
    f'forest-{metric}',
    f'Differences in {named.name["en"]} with their intervals. Filled: primary '
    'comparison, hollow: for information, without verdict; square: tuned; '
    'grey: the margin within which arms count as equivalent; an arrow: the '
    'interval is open.',
    f'forest plot of {len(rows)} comparisons',
    paint,
    height=0.9 + line * len(rows),
  )


COSTS: dict[str, tuple[str, Callable[[float], float]]] = {
  'step_seconds': ('milliseconds a step', lambda value: 1e3 * value),
  'flops_per_token': (
    'MFLOP of matrix products a token',
    lambda value: value / 1e6,
  ),
  'parameters': ('thousand parameters', lambda value: value / 1e3),
}


def quality_against_cost(
  results: Results, phase: str, metric: str, cost: str
) -> style.Picture | None:
  """One point an arm: mean with the range of its seeds, against its cost."""
  label, scaled = COSTS[cost]
  points = {}
  for name in results.variants:
    runs = results.of(name, phase)
    values = [run.value(metric) for run in runs]
    values = [value for value in values if math.isfinite(value)]
    price = scaled(median_of(runs, cost))
    if values and math.isfinite(price):
      points[name] = (price, np.array(values))
  if len({price for price, _ in points.values()}) < 2:
    return None  # All cost the same: nothing to hold against.
  look, named = style.looks(results.variants), answers.metric(metric)

  def paint(figure: Any) -> None:
    axes = figure.subplots()
    for name, (price, value_R) in points.items():
      color, marker, _ = look[name]
      axes.plot([price] * 2, [value_R.min(), value_R.max()], color=color)
      axes.plot(
        price,
        value_R.mean(),
        marker=marker,
        color=color,
        linestyle='none',
        markersize=7,
        label=style.plain(style.short(name)),
      )
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    axes.set_ylabel(_label(metric))
    axes.set_title(PHASES[phase], loc='left')
    axes.grid(alpha=0.25)
    style.legend_below(figure, axes)

  return style.draw(
    f'cost-{cost}-{phase}',
    f'{named.name["en"].capitalize()} against {label}, {PHASES[phase]}; the '
    'line spans the seeds.',
    f'quality against cost of {", ".join(points)}',
    paint,
    height=2.6 + 0.1 * len(points),
  )


def learning_rates(results: Results) -> list[style.Picture]:
  """Validation loss against the rate, at the warmup that was chosen."""
  chosen = results.tuning.get('chosen', {})
  arms = [name for name in results.variants if name in chosen]
  return [
    _basins(results, {name: chosen[name] for name in group}, part)
    for part, group in enumerate(style.groups(arms) if arms else [])
  ]


def _basins(
  results: Results, chosen: Mapping[str, Mapping[str, Any]], part: int
) -> style.Picture:
  look = style.looks(results.variants)

  def paint(figure: Any) -> None:
    axes = figure.subplots()
    for name, one in chosen.items():
      color, marker, line = look[name]
      recipe = one['recipe']
      points = sorted(
        (at['rate'], at['loss'])
        for at in one['grid']
        if at['warmup'] == recipe[WARMUP]
      )
      axes.plot(
        *zip(*points, strict=True),
        color=color,
        linestyle=line,
        marker=marker,
        label=style.plain(style.short(name)),
      )
    axes.set_xscale('log', base=2)
    rates = sorted(
      {at['rate'] for one in chosen.values() for at in one['grid']}
    )
    axes.set_xticks(rates, [f'{rate:.2g}' for rate in rates], rotation=45)
    axes.minorticks_off()
    axes.set_xlabel('learning rate')
    axes.set_ylabel('validation loss (nats a token)')
    axes.grid(alpha=0.25)
    style.legend_below(figure, axes)

  return style.draw(
    f'learning-rates-{part + 1}',
    'Validation loss over the seeds of tuning against the learning rate, at '
    'the warmup that was chosen: a wide basin forgives, a narrow one does not.',
    f'loss against learning rate of {", ".join(chosen)}',
    paint,
    height=2.8 + 0.16 * len(chosen),
  )
