# Ablation: the maps of the teacher's pyramid and the student's FPN too. PKD compares them normalised: the
# pyramid's are, by layer normalisation, FPN's are not.
_base_ = '../vitdet-b_to_mobilenetv2_voc2012.py'

# Cao et al. 2022 (arXiv 2207.02039): 6 a level, here for the sum of five.
neck = dict(type='PKD', loss_weight=6.0 * 5, student='neck', teacher='neck')
model = dict(losses=dict(loss_kd_neck=neck))
