# The student of two classes with half the layers: three in the encoder, three in the decoder.
_base_ = './detr_r18_10e_coco-person-dog.py'

model = dict(encoder=dict(num_layers=3), decoder=dict(num_layers=3))
