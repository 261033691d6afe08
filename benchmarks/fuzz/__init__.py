"""Thousands of odd command lines and damaged files, and what `prenas` makes of each.

`bases` makes two small runs, `odd` knows odd values and how to damage bytes, documents and files,
`commands`, `files` and `containers` make cases of them, `guard` watches what a case touches, and
`judging` runs a case and says how it ended.
"""
