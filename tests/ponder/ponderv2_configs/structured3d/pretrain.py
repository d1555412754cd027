_base_ = ["../_base_/pretrain.py"]

# fmt: off
class_names = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "picture", "desk", "shelves",
    "curtain", "dresser", "pillow", "mirror", "ceiling", "refrigerator", "television", "nightstand", "sink", "lamp",
    "otherstructure", "otherfurniture", "otherprop",
)
# fmt: on
model = dict(
    conditions=("Structured3D",),
    class_name=class_names,
    valid_index=(tuple(range(25)),),
)

num_cameras = 2
data = dict(
    num_classes=25,
    ignore_index=-1,
    names=class_names,
    train=dict(
        type="Structured3DRGBDDataset",
        split="train",
        data_root="data/structured3d",
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
            dict(type="Add", keys_dict={"condition": "Structured3D"}),
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
