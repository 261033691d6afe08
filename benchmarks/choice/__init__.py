"""Does the choice before training help? Trainings that differ in nothing but the choice.

    python -m benchmarks choice --question choice --data digits --seeds 0 1 2 --dry-run
    python -m benchmarks choice --question choice --data digits fashion-mnist --seeds 0 1 2

Questions are `choice`, `isomers`, `number`, `alone` and `rivals` (`benchmarks.choice.questions`).
Every arm of a question is a run in a folder of its own. All arms of a seed send the same number of
images through subnets, and their weights come from the same initialisation. A budget is answered by
the best of its subnets on validation, and compared by that subnet's accuracy on test.

Before anything starts, the plan says which runs are missing and how long they take. A command that
was stopped continues. Rows are merged into the results after every run; tables and the picture
beside them are written from the rows, also with `--only-tables`.

Decision rules, written down before the runs (`benchmarks.choice.answers.verdict`). A cell is a
budget of a data set and a length of training; its difference is the mean over the seeds.

- An arm beats its control if it is ahead by more than two standard errors in at least half of the
  cells, and behind by one point or more in none.
- `skeletons, k = 3` becomes the default if it beats `random, k = 3`, and if its mean over a data
  set and length is never below that of `S`. (The second half was added on 2026-11-28, after the
  first runs had shown it behind `S` with one subnet.)
- `counts` becomes the default score if `S` does not beat it, and if it is not behind `S` by one
  point or more in any cell. (The second half was added on 2026-11-28, when the first Transformers
  had shown counting up to 2.4 points behind: a default must not lose what the one before it had.)
- `random` becomes the default strategy if neither `S` nor `counts` beats it: the simplest rule that
  nothing beats.
- `even` becomes the default isomer rule if `published` does not beat it, and if it is not behind
  `published` by one point or more in any cell. (The second half was added on 2026-11-29, when the
  first runs on Fashion-MNIST had shown it a point behind. It is that of the rule for `counts`.)
"""
