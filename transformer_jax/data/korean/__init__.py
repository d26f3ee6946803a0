"""A small English-Korean language with gold alignment, correct not large.

Plain style (해라체) only. A sentence has one meaning and a meaning one sentence
in each language, so that exact match is a valid score in both directions. The
rooms, from top to bottom: `lexicon` (stored forms), `particles`, `meaning`
(what can be said), `render` (meaning -> aligned morphemes), `parse` (sentence
-> meaning), `links` (gold alignment), `score`, `generate` (splits) and
`source` (the sentences as a text source, `task:korean`).
"""
