# shellcheck shell=bash disable=SC2034
# German to English, Bible verses: a small pre-norm transformer that trains on a CPU in minutes.

kind=translation
source_lang=de
target_lang=en
prepare_script=prepare-bible.sh
suffixes=("$source_lang" "$target_lang")
vocabulary=4000
preprocess_flags=(
    --source-lang "$source_lang" --target-lang "$target_lang" --joined-dictionary
)

arch=transformer
train_flags=(
    --task translation --source-lang "$source_lang" --target-lang "$target_lang"
    --encoder-layers 3 --decoder-layers 3
    --encoder-embed-dim 128 --decoder-embed-dim 128
    --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256
    --encoder-attention-heads 4 --decoder-attention-heads 4
    --encoder-normalize-before --decoder-normalize-before
    --share-all-embeddings --dropout 0.1
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0
    --lr 5e-3 --lr-scheduler inverse_sqrt --warmup-updates 400
    --max-tokens 2048 --num-workers 0
)
default_flags=(
    --max-update 1200 --log-interval 25
    --save-interval-updates 100 --validate-interval-updates 100
)
full_flags=(
    --max-update 30000 --patience 5 --log-interval 100
    --save-interval-updates 500 --validate-interval-updates 500
)
generate_flags=(
    --beam 4 --remove-bpe sentencepiece --max-tokens 4096 --max-len-a 1.5 --max-len-b 20
    --log-interval 5
)
