_base_ = ["../_base_/pretrain.py"]

batch_size = 2
enable_amp = False
train = dict(type="MultiDatasetTrainer")

# fmt: off
text_names = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "bookcase",
    "picture", "counter", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "ceiling", "refrigerator",
    "television", "shower curtain", "nightstand", "toilet", "sink", "lamp", "bathtub", "garbagebin", "board",
    "beam", "column", "clutter", "other structure", "other furniture", "other property",
)
class_names = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "desk", "curtain", "refridgerator", "shower curtain", "toilet", "sink", "bathtub", "otherfurniture",
)
# fmt: on
model = dict(
    backbone=dict(
        type="SpUNet-v1m3",
        context_channels=16,
        cls_mode=False,
        conditions=("ScanNet", "S3DIS", "Structured3D"),
        zero_init=False,
        norm_decouple=True,
        norm_adaptive=True,
        norm_affine=True,
    ),
    conditions=("Structured3D", "ScanNet", "S3DIS"),
    class_name=text_names,
    valid_index=(
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 25, 26, 33, 34, 35),
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 20, 22, 24, 25, 27, 34),
        (0, 1, 4, 5, 6, 7, 8, 10, 19, 29, 30, 31, 32),
    ),
    context_channels=16,
    ppt_loss_weight=1.0,
    ppt_criteria=[dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1)],
)

epoch = 4
optimizer = dict(type="SGD", lr=0.0001 * batch_size / 8, momentum=0.9, weight_decay=0.0001, nesterov=True)
scheduler = dict(
    type="OneCycleLR",
    max_lr=optimizer["lr"],
    pct_start=0.05,
    anneal_strategy="cos",
    div_factor=10.0,
    final_div_factor=10000.0,
)

num_cameras = 2
data = dict(
    num_classes=20,
    ignore_index=-1,
    names=class_names,
    train=dict(
        type="ConcatDataset",
        datasets=[
            dict(
                type="Structured3DRGBDDataset",
                split="train",
                data_root="data/structured3d",
                render_semantic=True,
                num_cameras=num_cameras,
                transform={{_base_.motions}}
                + [dict(type="Add", keys_dict={"condition": "Structured3D"})]
                + {{_base_.collection}},
                test_mode=False,
                loop=4,
            ),
            dict(
                type="ScanNetRGBDDataset",
                split="train",
                data_root="data/scannet",
                rgbd_root="data/scannet/rgbd",
                render_semantic=True,
                num_cameras=num_cameras,
                transform={{_base_.motions}}
                + [dict(type="Add", keys_dict={"condition": "ScanNet"})]
                + {{_base_.collection}},
                test_mode=False,
                loop=2,
            ),
            dict(
                type="S3DISRGBDDataset",
                split=("Area_1", "Area_2", "Area_3", "Area_4", "Area_6"),
                data_root="data/s3dis",
                render_semantic=True,
                num_cameras=num_cameras,
                transform={{_base_.motions}}
                + [dict(type="Add", keys_dict={"condition": "S3DIS"})]
                + {{_base_.collection}},
                test_mode=False,
                loop=1,
            ),
        ],
    ),
)
