# What the files that train a segmentor from nothing share.
_base_ = ["runtime.py", "clouds.py"]

batch_size = 2
mix_prob = 0.8
empty_cache = False
enable_amp = True

model = dict(
    type="DefaultSegmentor",
    backbone=dict(
        type="SpUNet-v1m1",
        in_channels=6,
        base_channels=8,
        channels=(8, 8, 8, 8, 8, 8, 8, 8),
        layers=(1, 1, 1, 1, 1, 1, 1, 1),
    ),
    criteria=[dict(type="CrossEntropyLoss", loss_weight=1.0, ignore_index=-1)],
)

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
