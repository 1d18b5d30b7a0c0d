"""For tests of policies, schedulers and backends, ours and yours: builders, a fake cluster, contract suites."""
