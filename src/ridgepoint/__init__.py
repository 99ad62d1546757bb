"""ridgepoint: plan, serve, prove and make Mixture-of-Experts language models at the ridge point of the roofline.

Importing this package never imports torch; the torch line is drawn at `ridgepoint.kernels`.
"""

__version__ = "0.1.0"
