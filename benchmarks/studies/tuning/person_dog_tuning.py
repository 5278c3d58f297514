# Whether the settings of benchmarks/studies/person_dog.py hold, on a fifth of its training images, held out.
# Single trainings; nothing of this is a result.
_base_ = '../person_dog.py'

held_out = 0.2
seeds = (7,)
