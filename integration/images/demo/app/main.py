"""Does a little real work with each library, and says when it is done."""
import sys

import numpy as np
import pandas as pd
from scipy import linalg

a = np.arange(9.0).reshape(3, 3) + np.eye(3)
frame = pd.DataFrame({"x": np.linspace(0, 1, 5), "y": np.linspace(0, 1, 5) ** 2})
print(f"python {sys.version.split()[0]}, numpy {np.__version__}, pandas {pd.__version__}")
print(f"determinant {linalg.det(a):.3f}, mean of y {frame.y.mean():.3f}")
print("ready", flush=True)
