"""Late binding: a request gets its variant when its batch begins, not when it comes.

`late_binding` keeps the queue and `choice` decides, batch by batch; both, and what they stand on,
are the same in Triton, in the twin and in tests. `server/model.py` runs them inside Triton, as a
model of the Python backend (`actuation/dispatcher_folder.py` puts it into a repository); `signed`
is how it knows that a plan is the governor's.
"""
