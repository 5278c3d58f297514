# Ablation: the teacher sees the images half as large again as the student.
_base_ = '../vitdet-b_to_mobilenetv2_voc2012.py'

model = dict(teacher=dict(scale=1.5))  # ours: 600 px become 900; ViTDet was designed for 1024
