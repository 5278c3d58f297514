# Tuning for benchmarks/studies/person_dog.py on a fifth of its training images, held out: the student's
# learning rate with labels alone, then a check of the loss weights. These are single runs, not results.
_base_ = '../person_dog.py'

held_out = 0.2
seeds = (7,)
rate = 'optim_wrapper.optimizer.lr'
distilled = 'benchmarks/configs/person_dog/distilled.py'
labels = 'benchmarks/configs/person_dog/labels.py'
recipes = {
    'baseline': dict(config=labels, options={rate: 0.0007}),
    'baseline-lr2': dict(config=labels, options={rate: 0.002}),
    'baseline-lr5': dict(config=labels, options={rate: 0.005}),
    'baseline-lr10': dict(config=labels, options={rate: 0.01}),
    'distilled-lr5': dict(config=distilled, options={rate: 0.005}),
    'unlabelled-lr5': dict(config=distilled, options={rate: 0.005, 'model.task_losses': False}),
}
