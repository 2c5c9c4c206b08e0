"""`governor demo`: a bursty load on a real Triton, one arm per fixed variant and one governed.

Owns the load, the arms, the live view and the report. Nothing else in the program needs it.
"""
