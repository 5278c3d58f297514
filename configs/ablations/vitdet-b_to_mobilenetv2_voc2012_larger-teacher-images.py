# The teacher's images are 1.5 times as large as the student's.
_base_ = '../vitdet-b_to_mobilenetv2_voc2012.py'

model = dict(teacher=dict(scale=1.5))  # our choice: 600 px become 900; ViTDet was designed for 1024
