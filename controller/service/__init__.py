"""The governor as a service of systemd: putting it on a machine, and taking it off again.

Owns what lies where on the machine and in which order it comes and goes. It must not run the
daemon, nor know what a policy says beyond the files that it names. The units are those of the
top-level folder `systemd`; a wheel carries them in `controller/service/shipped`.
"""
