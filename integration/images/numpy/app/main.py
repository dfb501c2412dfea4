"""The peers' measure of a start: import numpy, then say so."""
import numpy

print("numpy", numpy.__version__)
print("ready", flush=True)
