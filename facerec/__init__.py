"""facerec: train face-recognition embedders (FaceNet) from raw photographs, on any Ray cluster.

Stages meet only in rows (``schema.py``): alignment -> training -> embedding -> evaluation -> reporting.
"""

__version__ = "0.1.0"
