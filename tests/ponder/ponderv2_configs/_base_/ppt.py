# What the files share that train a segmentor which is prompted with the dataset.
_base_ = ["runtime.py", "clouds.py"]

batch_size = 2
mix_prob = 0.8
empty_cache = False
enable_amp = True
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

epoch = 2
eval_epoch = 1
optimizer = dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=0.0001, nesterov=True)
scheduler = dict(
    type="OneCycleLR",
    max_lr=optimizer["lr"],
    pct_start=0.05,
    anneal_strategy="cos",
    div_factor=10.0,
    final_div_factor=10000.0,
)

# Behind the name of the dataset, which every cloud gets.
collection_with_condition = [
    dict(type="ToTensor"),
    dict(type="Collect", keys=("coord", "grid_coord", "segment", "condition"), feat_keys=("color", "normal")),
]
fragment_end = [
    dict(type="ToTensor"),
    dict(type="Collect", keys=("coord", "grid_coord", "index", "condition"), feat_keys=("color", "normal")),
]
