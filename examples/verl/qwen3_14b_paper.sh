#!/usr/bin/env bash
# "Beyond the 80/20 Rule" (arXiv 2506.01939 v2) on Qwen3-14B-Base under verl 0.9.1, with forkpoint's trainer.
#
# The settings are those of src/forkpoint/recipes/qwen3_14b_paper.toml, which says where each is from: DAPO
# without KL and entropy bonus, clip 0.2 / 0.28, 512 prompts x 16 answers a step in mini-batches of 32
# prompts, answers of at most 20,480 tokens with an overlong buffer of 4,096, the top 20 % of the tokens by
# entropy divided by their number. Dual clip 10 and 10 warm-up updates are the authors' script's.
#
# The files are verl's: rows with prompt, data_source (math_dapo) and reward_model.ground_truth, such as
# BytedTsinghua-SIA/DAPO-Math-17k. Its prompts want the answer after "Answer:", where the paper's template
# wants \boxed{}.
#
# NEVER RUN: a test composes these settings with verl's own files and has verl check them; nobody had 64 GPUs.
# How tokens are laid out over them (sequence parallelism, offload, tokens a GPU) is a guess to start from.
#
#   pip install forkpoint 'verl[vllm,fsdp]==0.9.1'       # on every node
#   TRAIN=dapo-math-17k.parquet TEST=aime-2024.parquet bash examples/verl/qwen3_14b_paper.sh
set -euo pipefail

python -m verl.trainer.main_ppo \
    trainer.v1.trainer_mode=forkpoint \
    +trainer.v1.forkpoint.keep_fraction=0.2 \
    +trainer.v1.forkpoint.denominator=selected \
    data.train_files="${TRAIN:?a parquet file}" \
    data.val_files="${TEST:?a parquet file}" \
    data.train_batch_size=512 \
    data.max_prompt_length=2048 \
    data.max_response_length=20480 \
    data.filter_overlong_prompts=True \
    algorithm.adv_estimator=grpo \
    algorithm.use_kl_in_reward=False \
    algorithm.filter_groups.enable=True \
    algorithm.filter_groups.metric=acc \
    reward.reward_manager.name=dapo \
    +reward.reward_kwargs.max_resp_len=20480 \
    +reward.reward_kwargs.overlong_buffer_cfg.enable=True \
    +reward.reward_kwargs.overlong_buffer_cfg.len=4096 \
    +reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=1.0 \
    +reward.reward_kwargs.overlong_buffer_cfg.log=False \
    actor_rollout_ref.model.path=Qwen/Qwen3-14B-Base \
    actor_rollout_ref.model.use_remove_padding=True \
    actor_rollout_ref.model.enable_gradient_checkpointing=True \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.loss_agg_mode=token-mean \
    actor_rollout_ref.actor.clip_ratio_low=0.2 \
    actor_rollout_ref.actor.clip_ratio_high=0.28 \
    actor_rollout_ref.actor.clip_ratio_c=10.0 \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.actor.grad_clip=1.0 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.optim.lr_warmup_steps=10 \
    actor_rollout_ref.actor.optim.weight_decay=0.1 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=22528 \
    actor_rollout_ref.actor.ulysses_sequence_parallel_size=8 \
    actor_rollout_ref.actor.entropy_from_logits_with_chunking=True \
    actor_rollout_ref.actor.fsdp_config.param_offload=True \
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=True \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=16 \
    actor_rollout_ref.rollout.temperature=1.0 \
    actor_rollout_ref.rollout.top_p=1.0 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.8 \
    actor_rollout_ref.rollout.max_num_batched_tokens=22528 \
    trainer.nnodes=8 \
    trainer.n_gpus_per_node=8 \
    trainer.total_training_steps=85 \
    trainer.save_freq=5 \
    trainer.test_freq=5 \
    trainer.project_name=forkpoint \
    trainer.experiment_name=qwen3_14b_paper \
    'trainer.logger=[console]' \
    "$@"
