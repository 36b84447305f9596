"""`python -m slipway_jobs.train`: the entry point of a training RayJob. See driver.py."""

from slipway_jobs.train.driver import main

if __name__ == "__main__":
    main()
