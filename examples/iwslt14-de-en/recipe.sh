# shellcheck shell=bash disable=SC2034,SC2154
# IWSLT14 German to English, post-norm: fairseq's examples/translation/README.md. The recipes of the
# other direction and of the variants set some of these first and source this file.

kind=translation
source_lang=${source_lang:-de}
target_lang=${target_lang:-en}
prepare_script=${prepare_script:-prepare-iwslt14.sh}
data=iwslt14
suffixes=(de en)
vocabulary=10000
lowercase=yes
# The data is binarised once for both directions.
preprocess_flags=(--source-lang de --target-lang en)
if [[ $task == *.sentencepiece ]]; then
    data=iwslt14-sentencepiece subwords=sentencepiece
    unsplit=sentencepiece detokenise=space
else
    subwords=subword-nmt tokenizer=moses
    unsplit='@@ ' detokenise=moses
fi

arch=transformer_iwslt_de_en
train_flags=(
    --task translation --source-lang "$source_lang" --target-lang "$target_lang"
    --share-decoder-input-output-embed --dropout 0.3
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0 --weight-decay 0.0001
    --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000
    --max-tokens 4096
    --eval-bleu --eval-bleu-args '{"beam": 5, "max_len_a": 1.2, "max_len_b": 10}'
    --eval-bleu-detok "$detokenise" --eval-bleu-remove-bpe "$unsplit"
    --best-checkpoint-metric bleu --maximize-best-checkpoint-metric
)
default_flags=(
    --max-update 50000 --log-interval 100
    --save-interval-updates 1000 --validate-interval-updates 1000
)
generate_flags=(
    --source-lang "$source_lang" --target-lang "$target_lang"
    --beam 5 --remove-bpe "$unsplit" --batch-size 128
)
