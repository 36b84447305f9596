"""`python -m slipway_jobs.compress`: the entry point of a compression RayJob. See driver.py."""

from slipway_jobs.compress.driver import main

if __name__ == "__main__":
    main()
