_base_ = ["../_base_/semseg.py"]

# fmt: off
class_names = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "picture", "desk", "shelves",
    "curtain", "dresser", "pillow", "mirror", "ceiling", "refrigerator", "television", "nightstand", "sink", "lamp",
    "otherstructure", "otherfurniture", "otherprop",
)
# fmt: on
model = dict(backbone=dict(num_classes=25))

dataset_type = "Structured3DDataset"
data_root = "data/structured3d"
data = dict(
    num_classes=25,
    names=class_names,
    train=dict(
        type=dataset_type,
        split="train",
        data_root=data_root,
        transform={{_base_.augment}}
        + [{{_base_.voxels}}, dict(type="SphereCrop", sample_rate=0.6, mode="random")]
        + {{_base_.end}}
        + {{_base_.collection}},
    ),
    val=dict(type=dataset_type, split="val", data_root=data_root),
    test=dict(type=dataset_type, split="val", data_root=data_root),
)
