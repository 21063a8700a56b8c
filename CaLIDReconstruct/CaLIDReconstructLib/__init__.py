"""What the CaLID module needs of 3D Slicer: nodes to stacks and back, the engine process, results, layouts, the panel.

Nothing here imports torch. Voxels cross to the engine through files, messages through `EngineProcess`; the pure parts
of `calid` (the stack, its files, its checks, the anatomy's measures) are used directly.
"""
