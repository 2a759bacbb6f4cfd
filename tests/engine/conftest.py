from engine_rig import drive, start, tiny
from vision_rig import seeing

__all__ = ["drive", "seeing", "start", "tiny"]
