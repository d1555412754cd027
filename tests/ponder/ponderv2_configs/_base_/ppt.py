# What the files share that train a segmentor which is prompted with the dataset.
_base_ = ["semseg.py"]

find_unused_parameters = True

prompted = dict(
    type="SpUNet-v1m3",
    in_channels=6,
    num_classes=0,
    base_channels=8,
    context_channels=16,
    channels=(8, 8, 8, 8, 8, 8, 8, 8),
    layers=(1, 1, 1, 1, 1, 1, 1, 1),
    cls_mode=False,
    conditions=("ScanNet", "S3DIS", "Structured3D"),
    zero_init=False,
    norm_decouple=True,
    norm_adaptive=True,
    norm_affine=True,
)
criteria = [
    dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1),
    dict(type="LovaszLoss", mode="multiclass", loss_weight=1.0, ignore_index=-1),
]
conditions = ("Structured3D", "ScanNet", "S3DIS")

# Behind the name of the dataset, which every cloud gets.
collection_with_condition = [
    dict(type="ToTensor"),
    dict(type="Collect", keys=("coord", "grid_coord", "segment", "condition"), feat_keys=("color", "normal")),
]
fragment_end = [
    dict(type="ToTensor"),
    dict(type="Collect", keys=("coord", "grid_coord", "index", "condition"), feat_keys=("color", "normal")),
]
