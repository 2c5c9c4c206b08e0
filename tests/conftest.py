"""What holds for every test."""

import signal

# A test run in the background of a script inherits "ignore" for Ctrl-C, and so would every
# program that a test starts, and waits for after it sent SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
