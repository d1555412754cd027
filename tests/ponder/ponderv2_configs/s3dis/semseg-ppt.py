_base_ = ["../scannet/semseg-ppt.py"]

# fmt: off
class_names = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board",
    "clutter",
)
# fmt: on
data = dict(
    num_classes=13,
    names=class_names,
    val=dict(
        type="S3DISDataset",
        split="Area_5",
        data_root="data/s3dis",
        transform={{_base_.voxelised}}
        + [dict(type="Add", keys_dict={"condition": "S3DIS"})]
        + {{_base_.collection_with_condition}},
    ),
    test=dict(
        type="S3DISDataset",
        split="Area_5",
        data_root="data/s3dis",
        test_cfg=dict(
            post_transform=[dict(type="CenterShift", apply_z=False)]
            + [dict(type="Add", keys_dict={"condition": "S3DIS"})]
            + {{_base_.fragment_end}},
        ),
    ),
)
