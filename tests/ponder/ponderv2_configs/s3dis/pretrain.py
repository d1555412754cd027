_base_ = ["../_base_/pretrain.py"]

# fmt: off
class_names = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board",
    "clutter",
)
# fmt: on
model = dict(
    conditions=("S3DIS",),
    class_name=class_names,
    valid_index=(tuple(range(13)),),
)

num_cameras = 2
data = dict(
    num_classes=13,
    ignore_index=-1,
    names=class_names,
    train=dict(
        type="S3DISRGBDDataset",
        split=("Area_1", "Area_2", "Area_3", "Area_4", "Area_6"),
        data_root="data/s3dis",
        render_semantic=True,
        num_cameras=num_cameras,
        transform=[
            dict(type="CenterShift", apply_z=True, keys=["extrinsic"]),
            dict(type="RandomDropout", dropout_ratio=0.5, dropout_application_ratio=1.0),
            dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=0.5, keys=["extrinsic"]),
            dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="x", p=0.5, keys=["extrinsic"]),
            dict(type="RandomRotate", angle=[-1 / 64, 1 / 64], axis="y", p=0.5, keys=["extrinsic"]),
            dict(type="RandomScale", scale=[0.9, 1.1], keys=["extrinsic"]),
            dict(type="RandomFlip", p=0.5, keys=["extrinsic"]),
            dict(type="GridSample", grid_size=0.1, hash_type="fnv", mode="train", return_grid_coord=True),
            dict(type="CenterShift", apply_z=False, keys=["extrinsic"]),
            dict(type="NormalizeColor"),
            dict(type="ShufflePoint"),
            dict(type="Add", keys_dict={"condition": "S3DIS"}),
            dict(type="ToTensor"),
            dict(
                type="Collect",
                keys=("coord", "grid_coord", "segment", "condition", "rgb", "depth", "depth_scale"),
                stack_keys=("intrinsic", "extrinsic", "rgb", "depth", "semantic"),
                feat_keys=("color", "normal"),
            ),
        ],
        test_mode=False,
    ),
)
