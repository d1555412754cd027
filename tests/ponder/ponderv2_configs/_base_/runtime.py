# The settings of every file here; the keys are those of PonderV2's default_runtime.py.
weight = None
resume = False
evaluate = True
test_only = False
seed = 7
save_path = "exp/default"
num_worker = 0
batch_size = 4
batch_size_val = None
batch_size_test = None
epoch = 4
eval_epoch = 2
sync_bn = False
enable_amp = False
empty_cache = False
find_unused_parameters = False
mix_prob = 0
param_dicts = None
hooks = [
    dict(type="CheckpointLoader"),
    dict(type="IterationTimer", warmup_iter=2),
    dict(type="InformationWriter"),
    dict(type="SemSegEvaluator"),
    dict(type="CheckpointSaver", save_freq=None),
    dict(type="PreciseEvaluator", test_last=False),
]
train = dict(type="DefaultTrainer")
test = dict(type="SemSegTester", verbose=True)
