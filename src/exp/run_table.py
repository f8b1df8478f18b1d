"""A table of experiments, from plan to summary: `python -m src.exp.run_table TABLE [option ...] [override ...]`

TABLE is a CSV or YAML file (conf/table/example.csv, docs/specification/07_experiment_tables.md). Options:
  dry_run=true            say what would be run, and stop
  engine=serial|ray       where jobs run; engine.KEY=VALUE changes a value of conf/engine.yaml
  vars.NAME=VALUE         a variable of a YAML table
Everything else is a Hydra override for every row. The same command again goes on where it stopped.
"""

import sys


def main() -> int:
    from src.core.errors import ConfigError, UserError
    from src.core.logging import get_logger, setup_logging
    from src.exp.table.driver import run_table

    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.stdout.write(__doc__ or "")
        return 0 if len(sys.argv) > 1 else 2
    setup_logging()
    log = get_logger(__name__)
    try:
        return run_table(sys.argv[1], sys.argv[2:])
    except ConfigError as e:
        for problem in e.problems:
            log.error("error: %s", problem)
    except UserError as e:
        log.error("error: %s", e)
    return 2


if __name__ == "__main__":
    sys.exit(main())
