# RoI losses, and RPN objectness.
_base_ = '../faster-rcnn_r50_to_mobilenetv2_voc2012.py'

objectness = dict(student='rpn_head.rpn_cls', teacher='rpn_head.rpn_cls', activation='sigmoid')
align = dict(type='RPNClassAlignment')
model = dict(losses=dict(loss_kd_rpn=dict(type='KLDivergence', align=align, **objectness)))
