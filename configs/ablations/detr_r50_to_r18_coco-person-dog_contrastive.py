# Logits, and a contrastive loss on query embeddings: the other queries of the batch are the negatives
# (CRD, arXiv 1910.10699).
_base_ = '../detr_r50_to_r18_coco-person-dog.py'

query = dict(module='bbox_head', capture='input', index=0)
align = dict(type='HungarianQueryAlignment', of='embedding')
contrast = dict(type='Contrastive', student=query, teacher=query, align=align)
model = dict(losses=dict(loss_kd_query=dict(contrast, loss_weight=0.1)))  # not searched
