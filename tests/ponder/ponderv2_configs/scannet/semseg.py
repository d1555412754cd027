_base_ = ["../_base_/semseg.py"]

# fmt: off
class_names = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "desk", "curtain", "refridgerator", "shower curtain", "toilet", "sink", "bathtub", "otherfurniture",
)
# fmt: on
model = dict(backbone=dict(num_classes=20))

dataset_type = "ScanNetDataset"
data_root = "data/scannet"
data = dict(
    num_classes=20,
    names=class_names,
    train=dict(
        type=dataset_type,
        split="train",
        data_root=data_root,
        transform={{_base_.augment}}
        + [{{_base_.voxels}}, dict(type="SphereCrop", point_max=2000, mode="random")]
        + {{_base_.end}}
        + {{_base_.collection}},
    ),
    val=dict(
        type=dataset_type,
        split="val",
        data_root=data_root,
        transform=[
            dict(type="CenterShift", apply_z=True),
            dict(type="Copy", keys_dict={"coord": "origin_coord", "segment": "origin_segment"}),
            {{_base_.voxels}},
            dict(type="CenterShift", apply_z=False),
            dict(type="NormalizeColor"),
            dict(type="ToTensor"),
            dict(
                type="Collect",
                keys=("coord", "grid_coord", "segment", "origin_coord", "origin_segment"),
                offset_keys_dict=dict(offset="coord", origin_offset="origin_coord"),
                feat_keys=("color", "normal"),
            ),
        ],
    ),
    test=dict(type=dataset_type, split="val", data_root=data_root),
)
