"""`python -m slipway_jobs.evaluate`: the entry point of an evaluation's RayJob. See driver.py."""

from slipway_jobs.evaluate.driver import main

if __name__ == "__main__":
    main()
