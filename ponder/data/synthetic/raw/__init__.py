"""Procedural rooms written as the raw downloads of ScanNet, S3DIS and Structured3D look, with the truth beside them.

    truth = write_raw_scannet(Path("raw"), scenes=2)
    # ponder convert scannet --data raw --splits raw/splits --out processed

Made for trying and testing `ponder convert` and what comes behind it without any download. Everything is a function of
the arguments.
"""

from ponder.data.synthetic.raw.s3dis import RawRoom, write_raw_s3dis
from ponder.data.synthetic.raw.scannet import RawScan, write_raw_scannet
from ponder.data.synthetic.raw.structured3d import RawHouse, write_raw_structured3d

__all__ = ["RawHouse", "RawRoom", "RawScan", "write_raw_s3dis", "write_raw_scannet", "write_raw_structured3d"]
