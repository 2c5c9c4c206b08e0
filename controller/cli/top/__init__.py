"""`governor top`: the live view of a running governor.

`state` and `view` are pure (keys to state, JSON to lines), `series` remembers the last minutes,
`feed` asks the daemon beside the screen, `keys` and `terminal` own the terminal, `loop` ties them.
"""
