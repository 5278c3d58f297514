# RoI losses, and the maps of the teacher's pyramid and the student's FPN. PKD normalises both maps, because
# only the pyramid has layer normalisation.
_base_ = '../vitdet-b_to_mobilenetv2_voc2012.py'

# Cao et al. 2022 (arXiv 2207.02039): 6 per level. mmkd takes the mean over five levels, so times 5.
neck = dict(type='PKD', loss_weight=6.0 * 5, student='neck', teacher='neck')
model = dict(losses=dict(loss_kd_neck=neck))
