_base_ = ["../_base_/semseg.py"]

# fmt: off
class_names = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board",
    "clutter",
)
# fmt: on
model = dict(backbone=dict(num_classes=13))
scheduler = dict(_delete_=True, type="PolyLR")

dataset_type = "S3DISDataset"
data_root = "data/s3dis"
data = dict(
    num_classes=13,
    names=class_names,
    train=dict(
        type=dataset_type,
        split=("Area_1", "Area_2", "Area_3", "Area_4", "Area_6"),
        data_root=data_root,
        transform={{_base_.augment}}
        + [
            dict(
                type="GridSample",
                grid_size=0.1,
                hash_type="fnv",
                mode="train",
                keys=("coord", "color", "segment"),
                return_grid_coord=True,
            ),
            dict(type="SphereCrop", point_max=2000, mode="random"),
        ]
        + {{_base_.end}}
        + [
            dict(type="ToTensor"),
            dict(type="Collect", keys=("coord", "grid_coord", "segment"), feat_keys=["coord", "color"]),
        ],
    ),
    val=dict(
        type=dataset_type,
        split="Area_5",
        data_root=data_root,
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(
                type="GridSample",
                grid_size=0.1,
                hash_type="fnv",
                mode="train",
                keys=("coord", "color", "segment"),
                return_grid_coord=True,
            ),
            dict(type="CenterShift", apply_z=False),
            dict(type="NormalizeColor"),
            dict(type="ToTensor"),
            dict(
                type="Collect",
                keys=("coord", "grid_coord", "segment"),
                feat_keys=["coord", "color"],
            ),
        ],
    ),
    test=dict(
        type=dataset_type,
        split="Area_5",
        data_root=data_root,
        test_cfg=dict(
            voxelize=dict(keys=("coord", "color")),
            post_transform=[
                dict(type="CenterShift", apply_z=False),
                dict(type="ToTensor"),
                dict(type="Collect", keys=("coord", "grid_coord", "index"), feat_keys=["coord", "color"]),
            ],
            aug_transform=[
                [dict(type="RandomScale", scale=[0.9, 0.9])],
                [dict(type="RandomScale", scale=[1, 1]), dict(type="RandomFlip", p=1)],
            ],
        ),
    ),
)
