from engine_rig import drive, start, tiny

__all__ = ["drive", "start", "tiny"]
