"""The command line: one short module a subcommand, with ``SUMMARY``, ``define_flags`` and ``run``."""
