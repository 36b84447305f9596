"""The TrainJob controller: decide (pure) and do (I/O) apart. Start reading in decide.py."""
