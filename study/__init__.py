"""Many runs: plans, launching, records, tables and figures."""
